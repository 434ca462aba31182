"""How good a codec is: metrics, evaluation of real files, benchmarks and the demo."""
