"""Train, measure and use CIFAR-10 autoencoders and classifiers."""

__version__ = "0.1.0"
