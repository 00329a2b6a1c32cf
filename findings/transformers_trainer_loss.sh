#!/usr/bin/env bash
# transformers 5.24.0: Trainer reports, and trains on, (T - 1) / T of the loss of GPT2LMHeadModel, but of
# LlamaForCausalLM the right one.
#
# With T positions a row, a model predicts T - 1 tokens, for its loss shifts the labels by one. Trainer divides the sum
# of the losses by a count of labels, and leaves out the first label of each row only if the model's `loss_type` is a
# causal language model's. It takes that from the class name, which must contain "ForCausalLM": for GPT2LMHeadModel
# it is None, the default loss is the causal one all the same, and the count is T a row. For T = 8 the log shows 12.5%
# too little, for T = 1,024 0.1%; model(ids, labels=ids).loss is right. So a loss or perplexity from Trainer's log can't
# be compared with other programs, nor for two row lengths. After model.loss_type = "ForCausalLM" it is right; a
# loss_type in the configuration, which the warning in the log speaks of, is not read.
#
# Output seen (CPU, Python 3.11, torch 2.13.0, accelerate 1.15.0; one layer, 4 rows of 8 tokens, step 1):
#   LlamaForCausalLM: Trainer's loss / loss: training 1.000, evaluation 1.000
#   GPT2LMHeadModel: Trainer's loss / loss: training 0.875, evaluation 0.875
#   GPT2LMHeadModel with loss_type set: Trainer's loss / loss: training 1.000, evaluation 1.000
set -euo pipefail
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check \
  transformers==5.24.0 accelerate==1.15.0 torch==2.13.0 numpy==2.4.6
HF_HUB_OFFLINE=1 venv/bin/python - <<'EOF'
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

T = 8
ARGUMENTS = TrainingArguments(
    output_dir="output",
    max_steps=1,
    learning_rate=0.0,
    per_device_train_batch_size=4,
    logging_steps=1,
    save_strategy="no",
    report_to=[],
    use_cpu=True,
    disable_tqdm=True,
)
torch.manual_seed(0)
ids = torch.randint(0, 65, (4, T))
rows = [{"input_ids": row, "labels": row} for row in ids]


def check(name, model, expected):
    model.eval()
    loss = model(ids, labels=ids).loss.item()
    trainer = Trainer(model=model, args=ARGUMENTS, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    training = trainer.state.log_history[0]["loss"] / loss
    evaluation = trainer.evaluate(rows)["eval_loss"] / loss
    print(f"{name}: Trainer's loss / loss: training {training:.3f}, evaluation {evaluation:.3f}")
    assert abs(training - expected) < 1e-3
    assert abs(evaluation - expected) < 1e-3


sizes = {"vocab_size": 65, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
no_tokens = {"bos_token_id": None, "eos_token_id": None}
llama = LlamaForCausalLM(LlamaConfig(**sizes, **no_tokens, intermediate_size=32, max_position_embeddings=T))
check("LlamaForCausalLM", llama, 1.0)

sizes = {"vocab_size": 65, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": T}
no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
gpt2 = GPT2LMHeadModel(GPT2Config(**sizes, **no_tokens, **no_dropout))
check("GPT2LMHeadModel", gpt2, (T - 1) / T)
gpt2.loss_type = "ForCausalLM"
check("GPT2LMHeadModel with loss_type set", gpt2, 1.0)
EOF
