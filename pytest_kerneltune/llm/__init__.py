"""Language models: who answers a search's questions.

``connect`` picks a provider (``providers.py``) or a file of recorded replies (``recorded.py``) and returns a
:class:`LanguageModel`, whose ``port`` makes what searches take. Nothing here reads the environment.

- ``providers``, ``access``, ``http``: one row each; addresses, keys and certificates; one question over HTTP.
- ``client``, ``quiet``, ``redaction``: no proxy, log or message gets to see what is secret.
- ``source``: what answers. ``reply_cache``, ``recorded``, ``recording``: answers given before, replayed, written down.
- ``model``, ``calls``, ``connecting``: questions in the background, what they cost, and from options to all of it.
"""

from __future__ import annotations

from pytest_kerneltune.llm.calls import Account, Call, account
from pytest_kerneltune.llm.connecting import RECORDED, LLMOptions, connect
from pytest_kerneltune.llm.model import LanguageModel, Port

__all__ = ["RECORDED", "Account", "Call", "LLMOptions", "LanguageModel", "Port", "account", "connect"]
