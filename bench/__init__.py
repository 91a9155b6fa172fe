"""Measurements: ``python -m bench`` runs all; ``--only NAME`` one, ``--short`` for a quick look.

Every throughput is measured paired: ours and a yardstick in turns within one run, because on one
machine single figures drift by up to 40 % and ratios by some 4 %. Only the ratios mean anything
elsewhere. CPU per request is the steadier measure of the two that are printed.
"""
