# SPDX-License-Identifier: BSD-3-Clause
"""How csrc/ is compiled: setup.py's commands use it."""
