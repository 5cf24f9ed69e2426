"""`cifarctl train-ae`."""

from typing import Annotated

import typer

from cifarctl import models
from cifarctl.cli import options as opt
from cifarctl.cli.completion import complete_arch, complete_recipe
from cifarctl.cli.output import Output
from cifarctl.startup import large_imports, wake_gpu


def train_ae(
    context: typer.Context,
    data: opt.Data = "cifar10",
    data_dir: opt.DataDir = None,
    offline: opt.Offline = False,
    val_size: opt.ValSize = None,
    limit: opt.Limit = None,
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=complete_arch("autoencoder"),
            help=f"One of: {', '.join(models.names('autoencoder'))}.",
            rich_help_panel=opt.MODEL_PANEL,
        ),
    ] = None,
    init: opt.Init = None,
    latent_dim: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Latent floats per image. Default: 256.", rich_help_panel=opt.MODEL_PANEL
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=complete_recipe("autoencoder"),
            help="fast: minutes. best: 0.7 dB more PSNR, half a minute on a GPU, hours without.",
            rich_help_panel=opt.TRAINING_PANEL,
        ),
    ] = "fast",
    epochs: opt.Epochs = None,
    batch_size: opt.BatchSize = None,
    lr: opt.LearningRate = None,
    weight_decay: opt.WeightDecay = None,
    ema: opt.Ema = None,
    assignments: opt.Assignments = None,
    print_recipe: opt.PrintRecipe = False,
    seed: opt.Seed = 0,
    device: opt.Device = "auto",
    threads: opt.Threads = None,  # noqa: ARG001 (its callback does it)
    precision: opt.Precision = "auto",
    out: opt.Out = None,
    resume: opt.Resume = False,
    overwrite: opt.Overwrite = False,
    tensorboard: opt.TensorBoard = True,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Train an autoencoder: it compresses 3,072 pixel values to a few hundred floats.

    Missing data is downloaded first. The weights, curves, reconstructions and TensorBoard events go to the run folder.

    Examples:
      cifarctl train-ae
      cifarctl train-ae --latent-dim 128 --out runs/ae128
    """
    wake_gpu(device)
    with large_imports():
        from cifarctl.cli.training import recipe_overrides, run_training
        from cifarctl.training.options import TrainOptions

    overrides = recipe_overrides(
        assignments,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        ema=ema,
        latent_dim=latent_dim,
    )
    run_training(
        context,
        TrainOptions(
            kind="autoencoder",
            data=data,
            data_dir=str(data_dir) if data_dir else None,
            val_size=val_size,
            seed=seed,
            arch=arch,
            init=str(init) if init else None,
            latent_dim=overrides.pop("latent_dim", None),  # --print-recipe shows it as --set takes it
            recipe=recipe,
            overrides=overrides,
            limit=limit,
            device=device,
            precision=precision,
            tensorboard=tensorboard,
        ),
        out,
        Output(json=json, quiet=quiet),
        print_recipe=print_recipe,
        resume=resume,
        overwrite=overwrite,
        offline=offline,
    )
