"""Figures, one module each: all arms measured afresh in one run, side by side or alternating."""
