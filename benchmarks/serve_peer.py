"""The plain server that `serve.py` compares with: FastAPI around a pipeline of transformers.

    MODEL=folder python -m uvicorn --app-dir benchmarks serve_peer:app

It needs transformers, fastapi, uvicorn and python-multipart, and nothing of headstart.
"""

import os
from typing import Annotated, Any

from fastapi import FastAPI, File, UploadFile
from PIL import Image
from transformers import pipeline

app = FastAPI()
classify = pipeline("image-classification", model=os.environ["MODEL"])


@app.get("/ready")
def ready() -> dict[str, bool]:
    return {"ready": True}


@app.post("/predict")
def predict(file: Annotated[UploadFile, File()]) -> dict[str, Any]:
    return {"answers": [{"predictions": classify(Image.open(file.file).convert("RGB"), top_k=5)}]}
