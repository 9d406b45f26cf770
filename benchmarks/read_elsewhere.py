"""What readers.py runs in another environment, which has no pal: logits, or RewardBench's command.

PYTHON read_elsewhere.py version
PYTHON read_elsewhere.py logits FOLDER < texts.json
PYTHON read_elsewhere.py rewardbench OPTIONS
"""

import importlib
import json
import sys

import torch
import transformers


def logits(folder: str, texts: list[str]) -> list[float]:
    """Return a classifier's logits of texts, with nothing but what its folder says."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    read = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    with torch.inference_mode():
        return model(**read).logits[:, 0].float().tolist()


def rewardbench() -> None:
    """Run RewardBench's command, which always moves texts to a GPU: without one they stay."""
    if not torch.cuda.is_available():
        move = transformers.BatchEncoding.to
        transformers.BatchEncoding.to = lambda self, device: move(
            self, "cpu" if device == "cuda" else device
        )
    from rewardbench.rewardbench import main

    main()


def has_rewardbench() -> bool:
    """Say whether RewardBench can be imported: it needs the transformers that it pins."""
    try:
        importlib.import_module("rewardbench")
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    task = sys.argv.pop(1)
    if task == "logits":
        print(json.dumps(logits(sys.argv[1], json.load(sys.stdin))))
    elif task == "rewardbench":
        rewardbench()
    else:
        print(json.dumps([transformers.__version__, has_rewardbench()]))
