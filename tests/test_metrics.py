"""ddpm_jax.training.metrics: metrics.jsonl and the TensorBoard file, also after a crash."""

import json
import resource
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from ddpm_jax.errors import UserError
from ddpm_jax.training.metrics import Metrics, read_metrics
from ddpm_jax.training.trackers import Trackers


def write(folder, steps, *, start=0, **options):
    with Trackers(["tensorboard"]) as trackers:
        trackers.start(folder, {}, start)
        with Metrics(folder, start=start, total=100, batch_size=8, trackers=trackers) as metrics:
            for step in steps:
                metrics.write(step, **{"loss": 1 / step, "grad_norm": 2.0 * step, "lr": 0.25, **options})


def written(folder):
    """The events of the TensorBoard files, in the order of writing."""
    for path in sorted((folder / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])  # TFRecord: length, its checksum, the bytes, their checksum
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            yield event


def summaries(folder):
    """What they show: (step, value), value.tag its name."""
    return [(event.step, value) for event in written(folder) for value in event.summary.value]


def events(folder):
    """The scalars, {tag: [(step, value), ...]}, and the steps purged."""
    scalars = {}
    for step, value in summaries(folder):
        scalars.setdefault(value.tag, []).append((step, value.simple_value))
    return scalars, [event.step for event in written(folder) if event.session_log.status == event.session_log.START]


def test_lines(tmp_path):
    write(tmp_path, [2, 4])
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert list(first) == ["step", "loss", "grad_norm", "lr", "steps_per_s", "images_per_s", "processor_s"]
    assert (first["step"], first["loss"], first["grad_norm"], first["lr"]) == (2, 0.5, 4.0, 0.25)
    assert second["step"] == 4 and read_metrics(tmp_path) == [first, second]
    assert second["images_per_s"] == pytest.approx(8 * second["steps_per_s"], rel=0.01)


def test_lines_are_there_at_once(tmp_path):
    """A run can be followed, or killed, while it trains."""
    with Metrics(tmp_path, start=0, total=10, batch_size=8) as metrics:
        metrics.write(1, loss=1.0)
        assert [line["step"] for line in read_metrics(tmp_path)] == [1]


def test_resume_forgets_what_came_after_the_checkpoint(tmp_path):
    write(tmp_path, [2, 4, 6, 8])
    write(tmp_path, [6], start=4, lr=0.5)
    assert [(line["step"], line["lr"]) for line in read_metrics(tmp_path)] == [(2, 0.25), (4, 0.25), (6, 0.5)]


@pytest.mark.parametrize("cut", ['{"step": 6, "lo', '{"step": 6, "loss": 0.1', "\x00\x00", "\n"])
def test_a_last_line_cut_short_is_left_out(tmp_path, cut):
    write(tmp_path, [2, 4])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(cut)
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4]
    write(tmp_path, [6], start=4)
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4, 6]


def test_no_file_no_lines(tmp_path):
    assert read_metrics(tmp_path) == []


def test_tensorboard_has_every_number(tmp_path):
    write(tmp_path, [2, 4])
    scalars, purged = events(tmp_path)
    assert set(scalars) == {"loss", "grad_norm", "lr", "steps_per_s", "images_per_s", "processor_s"}
    assert scalars["loss"] == [(2, 0.5), (4, 0.25)] and scalars["grad_norm"] == [(2, 4.0), (4, 8.0)]
    assert purged == []


def test_tensorboard_is_told_what_a_resumed_run_does_again(tmp_path):
    """From step 5 on nothing of before counts: TensorBoard drops it when it sees the mark."""
    write(tmp_path, [2, 4, 6])
    write(tmp_path, [6], start=4)
    assert events(tmp_path)[1] == [5]


def test_without_a_terminal_there_is_a_line_now_and_then(tmp_path, capsys):
    write(tmp_path, [50])
    error = capsys.readouterr().err
    assert "step 50/100  loss 0.0200" in error and "images/s" in error and "steps/s" in error


def test_a_full_disk_is_told_at_once_and_waited_for_by_nobody(tmp_path):
    """Many more lines than tensorboardX's queue holds."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Metrics(tmp_path, start=0, total=1000, batch_size=8) as metrics:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
        try:
            with pytest.raises(UserError, match="cannot be written to: File too large"):
                for step in range(1, 1000):
                    metrics.write(step, loss=1.0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert 5 < len(read_metrics(tmp_path)) < 100
    write(tmp_path, [200], start=100)


@pytest.mark.parametrize(
    "line",
    [
        "3", "[]", "null", '"text"', '{"loss": 1}', '{"step": 3}', '{"step": "3", "loss": 1}', '{"step": null, "loss": 1}',
        '{"step": 3, "loss": "low"}', '{"step": 3, "loss": NaN}', '{"step": 3, "loss": 1e999}', '{"step": 3, "loss": [1]}',
        "[" * 100_000,
    ],
)  # fmt: skip
def test_lines_that_are_none_are_left_out_and_those_after_them_kept(tmp_path, line):
    write(tmp_path, [2])
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(line.encode() + b"\n\xff\xfe\n")
    with Metrics(tmp_path, start=3, total=100, batch_size=8) as metrics:
        metrics.write(4, loss=None, grad_norm=1.0, skipped=1)
    (tmp_path / "metrics.jsonl").write_text(line + "\n" + (tmp_path / "metrics.jsonl").read_text())
    assert [line["step"] for line in read_metrics(tmp_path)] == [2, 4] and read_metrics(tmp_path)[1]["loss"] is None
