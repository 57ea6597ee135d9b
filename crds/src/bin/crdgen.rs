//! Writes the definitions of all kinds to `generated/`.

use std::{error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("generated");
    fs::create_dir_all(&folder)?;
    for definition in crds::definitions() {
        let file = folder.join(format!("{}.yaml", definition.spec.names.plural));
        fs::write(&file, crds::manifest(&definition)?)?;
        eprintln!("wrote {}", file.display());
    }
    Ok(())
}
