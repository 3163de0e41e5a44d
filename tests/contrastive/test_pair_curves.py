"""What a contrastive run's curves show."""

from contextlib import nullcontext

from matplotlib.figure import Figure

from mllm.training.callbacks import costs_line, draw


def test_curves_of_pairs_show_what_is_counted_in_pairs(tmp_path, monkeypatch):
    step = {"loss": 2.0, "grad_norm": 1.0, "lr_scale": 1.0, "targets": 8, "tokens_seen": 96, "tokens_per_second": 60.0}
    step |= {"pairs_per_second": 5.0, "logit_scale": 14.0, "batch_accuracy": 0.5}
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure))
    monkeypatch.setattr("mllm.training.callbacks.atomic_file", nullcontext)
    draw([step | {"step": n} for n in range(1, 11)], "run", tmp_path / "curves.png")
    (figure,) = drawn
    titles = [axes.get_title() for axes in figure.axes]
    assert "80 pairs" in figure.get_suptitle() and titles[0] == "loss, nats per pair"
    lines = {title: axes.lines[0].get_ydata()[-1] for axes in figure.axes if axes.lines for title in [axes.get_title()]}
    assert "pairs/s, and accuracy within the batch in % (right)" in lines and "MFU" not in " ".join(titles)
    right = [axes.lines[0].get_ydata()[-1] for axes in figure.axes[4:]]
    assert right == [14.0, 50.0]
    assert costs_line(step | {"data_wait_share": 0.1, "peak_memory_gib": 1.0}).startswith("5 pairs/s")
