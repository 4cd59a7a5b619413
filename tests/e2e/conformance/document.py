"""Writes docs/CONFORMANCE.md from the cases."""

from conformance import registry

if __name__ == "__main__":
    registry.load()
    registry.DOCUMENT.write_text(registry.document())
