#!/usr/bin/env bash
# tokenizers 0.23.3: a byte-level BPE tokenizer drops characters that were not in its training text, without an error.
#
# "Byte-level" suggests that every text can be encoded. But the trainer's default alphabet is the bytes that it met, and
# without an unknown token `encode` leaves the others out: decode(encode(text)) is a shorter text. With
# initial_alphabet=ByteLevel.alphabet() nothing is lost.
#
# Output seen (Python 3.11; trained on "the cat sat on the mat"):
#   default alphabet: 'the dog sat' -> 'the o sat'
#   all 256 bytes: 'the dog sat' -> 'the dog sat'
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check tokenizers==0.23.3
venv/bin/python - >seen <<'EOF'
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

for name, alphabet in (("default alphabet", []), ("all 256 bytes", pre_tokenizers.ByteLevel.alphabet())):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["the cat sat on the mat"], trainer)
    text = "the dog sat"
    print(f"{name}: {text!r} -> {tokenizer.decode(tokenizer.encode(text).ids)!r}")
EOF
cat seen
diff seen - <<'EOF'
default alphabet: 'the dog sat' -> 'the o sat'
all 256 bytes: 'the dog sat' -> 'the dog sat'
EOF
