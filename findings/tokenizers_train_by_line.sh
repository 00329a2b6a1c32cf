#!/usr/bin/env bash
# tokenizers 0.23.3: train(files) and train_from_iterator of the same text learn different tokenizers.
#
# `train` reads each file line by line, each line with its end, so the trainer never sees a line end followed by
# anything: no token contains a line end and more. Text with blank or indented lines then needs more tokens.
# `train_from_iterator` of whole documents learns such tokens.
#
# Output seen (Python 3.11; a Python-like text, byte-level BPE):
#   train(file): 900 tokens; tokens that begin with a line end: []
#   train_from_iterator(text): 749 tokens; ['\n\n', '\n\n\n', '\n  ', '\n   ', '\n       ']
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check tokenizers==0.23.3
venv/bin/python - <<'EOF'
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

text = "".join(f"def f{i}(x):\n    if x:\n        return x\n\n\n" for i in range(50))
with open("text.txt", "w") as file:
    file.write(text)


def new():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return tokenizer, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)


def summary(tokenizer):
    count = len(tokenizer.encode(text).ids)
    tokens = [token.replace("Ċ", "\n").replace("Ġ", " ") for token in tokenizer.get_vocab() if token[0] == "Ċ"]
    return count, sorted(token for token in tokens if token != "\n")


by_file, trainer = new()
by_file.train(["text.txt"], trainer)
by_text, trainer = new()
by_text.train_from_iterator([text], trainer)
file_count, file_tokens = summary(by_file)
text_count, text_tokens = summary(by_text)
print(f"train(file): {file_count} tokens; tokens that begin with a line end: {file_tokens}")
print(f"train_from_iterator(text): {text_count} tokens; {text_tokens}")
assert file_tokens == []
assert "\n\n\n" in text_tokens
assert text_count < file_count
EOF
