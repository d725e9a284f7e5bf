"""What people write first: FastAPI around transformers, float32, every request alone. Measured beside the service."""

from __future__ import annotations

import os
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForCausalLM, AutoTokenizer


class Question(BaseModel):
    """One text."""

    text: str


def create_app(folder: str, template: str, labels: list[str]) -> FastAPI:
    """`/async` keeps the event loop busy with one request after the other, `/sync` runs as many as FastAPI has threads."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    first = [tokenizer(f" {label}", add_special_tokens=False).input_ids[0] for label in labels]
    app = FastAPI()

    def answer(question: Question) -> dict[str, object]:
        inputs = tokenizer(template.replace("{text}", question.text), return_tensors="pt", truncation=True, max_length=1024)
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1]
        scores = torch.softmax(logits[first], dim=0).tolist()
        return {"label": labels[scores.index(max(scores))], "scores": scores}

    @app.post("/async")
    async def one_after_the_other(question: Question) -> dict[str, object]:
        return answer(question)

    @app.post("/sync")
    def in_threads(question: Question) -> dict[str, object]:
        return answer(question)

    @app.get("/readyz")
    def ready() -> None:
        return None

    return app


if __name__ == "__main__":
    given = os.environ
    if "THREADS" in given:
        torch.set_num_threads(int(given["THREADS"]))
    app = create_app(given["MODEL"], given["TEMPLATE"], given["LABELS"].split("|"))
    uvicorn.run(app, host=given["HOST"], port=int(given["PORT"]), log_level="warning")
