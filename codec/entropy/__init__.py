"""Lossless coding of integer latents: integer contexts and tables, a range coder."""

from codec.entropy.coder import SymbolCoder, SymbolsError
from codec.entropy.payload import PayloadError
from codec.entropy.tables import TablesError

__all__ = ["PayloadError", "SymbolCoder", "SymbolsError", "TablesError"]
