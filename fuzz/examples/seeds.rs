//! Writes the seed corpora: `cargo run --manifest-path fuzz/Cargo.toml --example seeds`, from the repository's root.

use std::path::Path;

fn main() -> std::io::Result<()> {
    for (target, name, bytes) in r1async_fuzz::seeds::all() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        std::fs::create_dir_all(corpus.join(target))?;
        std::fs::write(corpus.join(target).join(name), bytes)?;
    }
    Ok(())
}
