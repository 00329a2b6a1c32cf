#!/usr/bin/env bash
# tokenizers 0.23.3: the texts that DecodeStream gives, joined, can be shorter than decode of the same tokens.
#
# `step` returns None while the bytes so far end inside a character, and there is no call that ends a stream. If the
# last tokens leave a character incomplete, as a model's last tokens can, decode shows it as U+FFFD and the stream loses
# it.
#
# Output seen (Python 3.11; byte-level tokens of "né", all 3 and the first 2):
#   3 tokens: decode 'né', stream 'né'
#   2 tokens: decode 'n\ufffd', stream 'n'
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check tokenizers==0.23.3
venv/bin/python - <<'EOF'
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.decoders import DecodeStream

alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
ids = tokenizer.encode("n\u00e9").ids
for part, expected in ((ids, ("n\u00e9", "n\u00e9")), (ids[:-1], ("n\ufffd", "n"))):
    stream = DecodeStream()
    streamed = "".join(stream.step(tokenizer, token) or "" for token in part)
    decoded = tokenizer.decode(part)
    shown = [repr(text).replace("\ufffd", r"\ufffd") for text in (decoded, streamed)]
    print(f"{len(part)} tokens: decode {shown[0]}, stream {shown[1]}")
    assert (decoded, streamed) == expected
EOF
