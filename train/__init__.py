"""How the codecs are made: configuration, data, losses, the trainer and the export."""
