"""The README's Python examples, one per function, so that mypy checks them. A test fails if the two differ."""


def use_and_train() -> None:
    import cifarctl

    model = cifarctl.load()  # the pretrained classifier; or "autoencoder", a weights file, a run's folder
    for answer in model.predict(["example"], top_k=3):  # paths, or uint8 (N, 3, 32, 32) arrays and tensors
        print(answer.label, answer.confidence, answer.top)

    run = cifarctl.train_classifier("runs/quick", data="synthetic", limit=1000, epochs=1)
    print(cifarctl.evaluate(run.load()).metrics["accuracy"])
