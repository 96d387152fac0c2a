//! Opens disk specifications as stacks of layers.
