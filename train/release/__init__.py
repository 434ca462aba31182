"""From a run to something to use: exported codecs with their cards."""
