//! Typed, checked configuration to EAL arguments and a core map.
