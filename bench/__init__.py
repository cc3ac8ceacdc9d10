# SPDX-License-Identifier: BSD-3-Clause
"""The benchmark suite; README.md is its protocol, run.py the program."""
