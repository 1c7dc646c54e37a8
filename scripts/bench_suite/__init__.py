"""The benchmarks behind `scripts/bench`: one module per row, real processes throughout. No part of the tests."""
