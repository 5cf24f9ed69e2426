"""Make one verified data file from mirrors, files or folders. Functions yield events and print nothing."""

from cifarctl.data.download.events import Chosen, Event, Failed, Installed, Present, Progress, Waiting
from cifarctl.data.download.install import install, install_official, official_sources
from cifarctl.data.download.local import common_places
from cifarctl.data.download.urls import is_url

__all__ = [
    "Chosen",
    "Event",
    "Failed",
    "Installed",
    "Present",
    "Progress",
    "Waiting",
    "common_places",
    "install",
    "install_official",
    "is_url",
    "official_sources",
]
