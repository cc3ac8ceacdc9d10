# SPDX-License-Identifier: BSD-3-Clause
"""Three programs that each ask Hopper one question, and what compiles and runs them."""
