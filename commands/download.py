"""`download`: the published corpora and irreducible losses."""

from dataclasses import dataclass

import console
from data import downloads
from settings import Section


@dataclass
class DownloadConfig(Section):
    """Settings of `download`."""

    FIRST_WORD = "what"
    ONLY_WITH = {"data": "what=il_losses"}

    what: str = ""
    """c4-subset, or il_losses of c4, bcwk or mp"""
    data: str = "c4"
    """which irreducible losses: c4, bcwk (BookCorpus and Wikipedia), mp (MiniPile)"""
    output: str | None = None
    """folder; null: in the cache, where --data c4-subset looks"""


def download(config: DownloadConfig) -> None:
    """The published archives, continued where a connection broke off."""
    if config.what in ("c4-subset", "c4_subset"):
        console.say(downloads.download_c4_subset(config.output))
    elif config.what == "il_losses":
        console.say(downloads.download_il_losses(config.data, config.output))
    else:
        raise ValueError(f"download {config.what}: expected c4-subset or il_losses")
