"""Usage: load_safetensors.py FOLDER/model.safetensors"""

import json
import sys

from safetensors import safe_open
from safetensors.numpy import load_file

with safe_open(sys.argv[1], "numpy") as file:
    print(json.loads(file.metadata()["config"]))
weights = load_file(sys.argv[1])  # by path in the model, such as "decoder_norm.scale"
print(sum(w.size for w in weights.values()), "parameters in", len(weights), "arrays")
