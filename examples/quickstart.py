"""Pack a data set, train a network, evaluate it, and predict: python examples/quickstart.py [FOLDER]"""

import sys
from pathlib import Path

import dptrain

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")

# Images of ten shapes, which are drawn. For your pictures, give a folder that has a folder for each class.
data = dptrain.pack("shapes", folder / "shapes", train=1200, test=200, force=True)
print(data)

# Training uses all cores. `epochs` and the others are the keys of `dptrain train`: see docs/configuration.md.
run = dptrain.train(data, epochs=3, batch_size=32, lr=0.01, run_dir=folder / "run")

for epoch in run.epochs:
    print(f"epoch {epoch['epoch']}: training loss {epoch['loss']:.3f}, test accuracy {epoch['test_accuracy']:.1%}")

model = run.load()
evaluation = model.evaluate(data)
print(f"{evaluation.correct} of {evaluation.samples} test images are classified correctly")

images, labels = data.arrays("test")  # uint8 (n, C, H, W), and the numbers of the classes
for name, label in zip(model.predict(images[:5]), labels, strict=False):
    print(f"predicted {name}, is {data.classes[label]}")
