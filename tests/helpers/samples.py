"""Samples, batches of them, and the loss and gradients of a model on these."""

from mllm.conversation.schema import ImagePart, Message, Sample, TextPart
from mllm.data.collate import collate
from mllm.data.example import render_example
from mllm.data.packing import pack


def fail(error):
    raise error


def sample(name, question, answer, images=()):
    parts = (*(ImagePart() for _ in images), TextPart(text=question))
    return Sample(
        id=name,
        images=tuple(images),
        messages=(Message(role="user", content=parts), Message(role="assistant", content=answer)),
    )


def batch_of(samples, processor, packing, max_length=400):
    examples = [render_example(s, processor, max_length) for s in samples]
    return collate(pack(examples, packing, max_length), processor, fail)


def loss_and_gradients(model, batches):
    model.zero_grad()
    total = sum(model(batch) for batch in batches)
    total.backward()
    return total.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
