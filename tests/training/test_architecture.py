"""dptrain.training.architecture: networks by name and from a user's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training_runs import configuration, packed, run

from dptrain.errors import FAILED, ModelError, UsageError
from dptrain.training.architecture import build_network

MY_NET = '''
from dptrain.nn.layers.activation import ReLU
from dptrain.nn.layers.flatten import Flatten
from dptrain.nn.layers.conv import Conv2d
from dptrain.nn.layers.linear import Linear
from dptrain.nn.layers.pool import MaxPool2d

def build(input_shape, classes, *, width=4):
    """Strided convolution, then pooling with a separate kernel size."""
    return [Conv2d(width, 5, stride=2), ReLU(), MaxPool2d(3, stride=2), Flatten(), Linear(classes)]

def refuses(input_shape, classes, **options):
    raise ValueError(f"refused {input_shape}, {classes}, {options}")

def no_list(input_shape, classes):
    return 7

def quits(input_shape, classes):
    raise SystemExit(17)

def unfinished(input_shape, classes):
    return [Conv2d(4, 3), ReLU()]

def too_large(input_shape, classes):
    return [Conv2d(4, 99), Flatten(), Linear(classes)]

def no_arguments():
    return []

def two_more(input_shape, classes):
    return [Flatten(), Linear(classes + 2)]

def nothing_to_train(input_shape, classes):
    return [Flatten()]
'''


@pytest.fixture
def my_net(tmp_path: Path) -> Path:
    path = tmp_path / "my_net.py"
    path.write_text(MY_NET)
    return path


def kinds(model: str, options: dict[str, Any] | None = None) -> list[str]:
    return [layer.kind for layer in build_network(model, options or {}, (3, 8, 8), 5).layers]


def test_the_default_is_a_stack_of_convolutions_with_configurable_widths() -> None:
    assert kinds("convnet") == ["conv", "relu", "pool"] * 2 + ["flatten", "linear"]
    assert kinds("convnet", {"widths": [3, 4, 5]}) == ["conv", "relu", "pool"] * 3 + ["flatten", "linear"]
    assert kinds("linear") == ["flatten", "linear"]


def test_a_users_function_gets_input_shape_classes_and_options(my_net: Path) -> None:
    network = build_network(f"{my_net}:build", {"width": 6}, (1, 28, 28), 7)
    assert network.layout.shapes["conv1.weight"] == (6, 1, 5, 5)
    assert network.classes == 7


@pytest.mark.slow
def test_a_users_network_trains_on_28x28_grey_images_unchanged(my_net: Path, tmp_path: Path) -> None:
    data = packed(tmp_path / "grey", shape=(1, 28, 28), classes=7)
    summary, memory = run(configuration(data, tmp_path / "run", model=f"{my_net}:build", model_options={}, epochs=8))
    losses = [loss for _, loss, *_ in memory.evaluations]
    assert summary["step"] == 8 * 7
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_the_default_network_trains_on_28x28_grey_images_unchanged(tmp_path: Path) -> None:
    data = packed(tmp_path / "grey", shape=(1, 28, 28), classes=7)
    _, memory = run(configuration(data, tmp_path / "run", epochs=8))
    losses = [loss for _, loss, *_ in memory.evaluations]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("FOLDER/my_net.py", "add the function"),
        ("convnit", "did you mean 'convnet'?"),
        ("FOLDER", "or give FILE.py:FUNCTION; a run or checkpoint is for --checkpoint or --init-from"),
        ("FOLDER/missing.py:build", "there is no Python file"),
        ("FOLDER/my_net.py:biuld", "did you mean 'build'?"),
        ("FOLDER/my_net.py:Linear", "positional argument"),
        ("FOLDER/" + 300 * "x" + ".py:build", "cannot be read: File name too long"),
        ("FOLDER/my_net.py:MY", "has no function 'MY'"),
        ("FOLDER/my_net.txt:build", "there is no Python file"),
        ("FOLDER/my_net.py:refuses", "refused (3, 8, 8), 5, {}"),
        ("FOLDER/my_net.py:no_list", "the network has 7 in it, expected layers"),
        ("FOLDER/my_net.py:quits", "ended the program with status 17 (my_net.py, line "),
        ("FOLDER/my_net.py:refuses", "(my_net.py, line "),
        ("FOLDER/my_net.py:no_arguments", "no_arguments() takes 0 positional arguments but 2 were given"),
        ("FOLDER/my_net.py:unfinished", "end it with Flatten(), Linear(K)"),
        ("FOLDER/my_net.py:too_large", "smaller than the kernel of (99, 99)"),
        ("FOLDER/my_net.py:two_more", "outputs 7 logits, but the data set has 5 classes"),
        ("FOLDER/my_net.py:nothing_to_train", "expected one logit a class|no parameters|192 logits"),
    ],
)
def test_a_model_that_cannot_be_built_is_one_error(model: str, words: str, my_net: Path, tmp_path: Path) -> None:
    my_net.with_suffix(".txt").write_text(MY_NET)
    model = model.replace("FOLDER", str(tmp_path))
    with pytest.raises((UsageError, ModelError)) as caught:
        build_network(model, {}, (3, 8, 8), 5)
    assert "--model" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert any(part in str(caught.value) for part in words.split("|"))


def test_a_file_may_define_dataclasses_and_the_function_may_be_a_partial(tmp_path: Path) -> None:
    path = tmp_path / "modern.py"
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom functools import partial\n"
        "from dptrain.nn.zoo import convnet\n"
        "@dataclass\nclass Options:\n    width: int = 3\n"
        "build = partial(convnet, widths=[Options().width])\n"
    )
    assert build_network(f"{path}:build", {}, (3, 8, 8), 5).layout.shapes["conv1.weight"] == (3, 3, 3, 3)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise SystemExit(3)\n", "ended the program with status 3 (net.py, line 1)"),
        ("def build(:\n", "SyntaxError: invalid syntax (net.py, line 1)"),
        ("x = 'caf\xe9'\n", "SyntaxError: (unicode error) 'utf-8' codec|Non-UTF-8"),
        ("x = 1\0\n", "SyntaxError: source code cannot contain null bytes|source code string"),
        ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module' (net.py, line 1)"),
        ("from . import layers\n", "net.py is not part of a package: write `import NAME` for NAME.py"),
        ("\n\n1 / 0\n", "ZeroDivisionError: division by zero (net.py, line 3)"),
        ("class Odd(Exception):\n    pass\nraise Odd('\x1b[31m')\n", "Odd: \\x1b[31m"),
        ("open('/nonexistent/file')\n", "No such file or directory: '/nonexistent/file' (net.py, line 1)"),
        ("def f():\n    f()\nf()\n", "RecursionError: maximum recursion depth exceeded (net.py, line 2)"),
    ],
)
def test_an_error_of_the_file_is_permanent_and_shows_the_users_part_of_the_traceback(
    source: str, words: str, tmp_path: Path
) -> None:
    """Found in the field: status 70, so the launcher's --max-restarts restarted it, which cannot help."""
    path = tmp_path / "net.py"
    path.write_bytes(source.encode("latin-1"))
    with pytest.raises(ModelError) as caught:
        build_network(f"{path}:build", {}, (3, 8, 8), 5)
    assert any(part in str(caught.value) for part in words.split("|"))
    assert caught.value.status == FAILED
    assert str(path) in caught.value.details or "null bytes" in str(caught.value)
    assert "model_source.py" not in caught.value.details
    assert "importlib" not in caught.value.details
    assert "\x1b" not in caught.value.details
    assert len(caught.value.details.splitlines()) < 70


@pytest.mark.parametrize("method", ["bind", "tensors", "__repr__", "__init__"])
def test_an_error_of_a_users_layer_while_the_network_is_built_is_permanent(method: str, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    path.write_text(
        "from dptrain.nn import Flatten, Layer, Linear\n"
        f"class Mine(Layer):\n    def {method}(self, *arguments):\n        return self.no_such_attribute\n"
        "def build(input_shape, classes):\n    return [Mine(), Flatten(), Linear(classes)]\n"
    )
    with pytest.raises(ModelError, match=r"has no attribute 'no_such_attribute' \(net.py, line 4\)") as caught:
        build_network(f"{path}:build", {}, (3, 8, 8), 5)
    assert f"in {method}\n" in caught.value.details


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("convnet", {"width": [3]}, "unexpected keyword argument 'width'"),
        ("convnet", {"widths": 3}, "widths is 3, expected a list of whole numbers of at least 1"),
        ("convnet", {"widths": []}, r"widths is \[\], expected a list"),
        ("airbench", {"widths": "4"}, "widths is '4', expected a list"),
        ("convnet", {"widths": [0]}, "one of the widths is 0, expected a whole number of at least 1"),
        ("convnet", {"widths": [True]}, "one of the widths is True, expected"),
        ("airbench", {"widths": [2, 2.5]}, r"one of the widths is 2\.5, expected"),
        ("convnet", {"kernel_size": 2}, "kernel_size is 2, expected an odd number"),
        ("convnet", {"kernel_size": "3"}, "kernel_size is '3', expected a whole number"),
        ("resnet20", {"width": True}, "width is True, expected"),
        ("resnet20", {"blocks": -1}, "blocks is -1, expected a whole number of at least 1"),
        ("resnet9", {"width": "2"}, "width is '2', expected"),
        ("resnet9", {"logit_scale": "1"}, "factor is '1', expected a finite number other than 0"),
        ("vgg11", {"width": 2.5}, r"width is 2\.5, expected"),
    ],
)
def test_an_unsuitable_option_is_reported_by_name(model: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=f"--model {model} with .*{next(iter(options))}.*, input .*: .*{words}"):
        build_network(model, options, (3, 32, 32), 5)
