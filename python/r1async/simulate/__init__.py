"""`r1async simulate`: what a run will do, before it is paid for. The rules are the buffer's own (Rust)."""
