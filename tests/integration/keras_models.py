"""Runs in the environment of TensorFlow: `python keras_models.py FOLDER` writes models and what they answer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np


def main(folder: Path) -> None:
    """Write `images.keras`, `texts.keras`, `lambda.keras`, `old.h5` and `product/`, with calls and answers."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    pixels = keras.Input((None, None, 3), name="pixels")
    seen = keras.layers.Conv2D(8, 3, activation="relu")(pixels)
    pooled = keras.layers.GlobalAveragePooling2D()(seen)
    images = keras.Model(pixels, keras.layers.Dense(4, activation="softmax", name="probs")(pooled))
    ids, extra = keras.Input((None,), dtype="int64", name="ids"), keras.Input((3,), name="extra")
    read = keras.layers.LSTM(6)(keras.layers.Embedding(50, 8)(ids))
    both = keras.layers.Concatenate()([read, extra])
    outputs = {"score": keras.layers.Dense(1)(both), "kind": keras.layers.Dense(3)(both)}
    texts = keras.Model({"ids": ids, "extra": extra}, outputs)
    doubling = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda value: value * 2)])
    images.save(folder / "images.keras")
    images.save(folder / "old.h5")
    texts.save(folder / "texts.keras")
    doubling.save(folder / "lambda.keras")

    class Product(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            self.weights = tf.Variable(tf.reshape(tf.range(8.0), (4, 2)))

        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])  # type: ignore[untyped-decorator]
        def __call__(self, x: Any) -> Any:
            return {"y": x @ self.weights}

    product = Product()
    tf.saved_model.save(product, str(folder / "product"), signatures={"serving_default": product.__call__})
    generator = np.random.default_rng(3)
    calls: dict[str, Any] = {
        "pixels": generator.standard_normal((4, 9, 11, 3)).astype(np.float32),
        "ids": generator.integers(0, 50, (4, 6)),
        "extra": generator.standard_normal((4, 3)).astype(np.float32),
        "x": generator.standard_normal((4, 4)).astype(np.float32),
    }
    answers: dict[str, Any] = {
        name: value.numpy() for name, value in texts({"ids": calls["ids"], "extra": calls["extra"]}).items()
    }
    np.savez(folder / "calls.npz", allow_pickle=False, **calls)
    np.savez(
        folder / "answers.npz",
        allow_pickle=False,
        probs=images(calls["pixels"]).numpy(),
        y=product(calls["x"])["y"].numpy(),
        **answers,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
