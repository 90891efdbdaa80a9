//! What the host offers and needs: report, then apply.
