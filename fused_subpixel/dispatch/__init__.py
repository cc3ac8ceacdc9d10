# SPDX-License-Identifier: BSD-3-Clause
"""From a call's arguments to who computes it: checks, resolution, choice."""
