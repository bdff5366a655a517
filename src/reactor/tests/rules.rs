//! Rules that a script on the simulated network shows best.
