"""The baseline of the serving benchmark: FastAPI around `transformers` in float32, one request a forward pass."""

from __future__ import annotations

import os
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer


class ClassifyRequest(BaseModel):
    """A text to classify."""

    text: str


def create_app(folder: str, template: str, labels: list[str]) -> FastAPI:
    """Return an app whose `/async` blocks the event loop during each request, and whose `/sync` runs requests in FastAPI's threads."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    first = [tokenizer(f" {label}", add_special_tokens=False).input_ids[0] for label in labels]
    app = FastAPI()

    def classify(request: ClassifyRequest) -> dict[str, object]:
        inputs = tokenizer(template.replace("{text}", request.text), return_tensors="pt", truncation=True, max_length=1024)
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1]
        scores = torch.softmax(logits[first], dim=0).tolist()
        return {"label": labels[scores.index(max(scores))], "scores": scores}

    @app.post("/async")
    async def in_event_loop(request: ClassifyRequest) -> dict[str, object]:
        return classify(request)

    @app.post("/sync")
    def in_threads(request: ClassifyRequest) -> dict[str, object]:
        return classify(request)

    @app.get("/readyz")
    def ready() -> None:
        return None

    return app


if __name__ == "__main__":
    environment = os.environ
    if "THREADS" in environment:
        torch.set_num_threads(int(environment["THREADS"]))
    app = create_app(environment["MODEL"], environment["TEMPLATE"], environment["LABELS"].split("|"))
    uvicorn.run(app, host=environment["HOST"], port=int(environment["PORT"]), log_level="warning")
