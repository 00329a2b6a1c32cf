#!/usr/bin/env bash
# transformers 5.24.0: AutoTokenizer ignores the pre-tokenizer and decoder of tokenizer.json in a GPT-2 folder.
#
# With model_type "gpt2" and no tokenizer_class, or tokenizer_class "GPT2TokenizerFast", it takes the vocabulary from
# tokenizer.json and GPT-2's byte-level pre-tokenizer and decoder. A tokenizer of characters then drops spaces and line
# ends, without a warning. tokenizer_class "PreTrainedTokenizerFast" keeps the file as it is.
#
# Output seen (Python 3.11, tokenizers 0.23.3; text 'a  b ,c .\n'):
#   tokenizers itself: 'a  b ,c .\n'
#   no tokenizer_class: 'ab,c.'
#   GPT2TokenizerFast: 'ab,c.'
#   PreTrainedTokenizerFast: 'a  b ,c .\n'
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3
HF_HUB_OFFLINE=1 venv/bin/python - >seen <<'EOF'
import json
import os

from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer

text = "a  b ,c .\n"
plain = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate("ab ,c.\n")}, merges=[]))
plain.decoder = decoders.Fuse()
os.mkdir("model")
plain.save("model/tokenizer.json")
with open("model/config.json", "w") as file:
    json.dump({"model_type": "gpt2", "vocab_size": 7, "bos_token_id": None, "eos_token_id": None}, file)
print(f"tokenizers itself: {plain.decode(plain.encode(text).ids)!r}")
for name in (None, "GPT2TokenizerFast", "PreTrainedTokenizerFast"):
    if name:
        with open("model/tokenizer_config.json", "w") as file:
            json.dump({"tokenizer_class": name}, file)
    loaded = AutoTokenizer.from_pretrained("model")
    print(f"{name or 'no tokenizer_class'}: {loaded.decode(loaded(text)['input_ids'])!r}")
EOF
cat seen
diff seen - <<'EOF'
tokenizers itself: 'a  b ,c .\n'
no tokenizer_class: 'ab,c.'
GPT2TokenizerFast: 'ab,c.'
PreTrainedTokenizerFast: 'a  b ,c .\n'
EOF
