//! Writes the definitions of all kinds to `generated/`, and into the chart.

use std::{error::Error, fs, path::Path};

fn main() -> Result<(), Box<dyn Error>> {
    for folder in ["generated", "../charts/easynet/files/crds"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        fs::create_dir_all(&folder)?;
        for definition in crds::definitions() {
            let file = folder.join(format!("{}.yaml", definition.spec.names.plural));
            fs::write(&file, crds::manifest(&definition)?)?;
            eprintln!("wrote {}", file.display());
        }
    }
    Ok(())
}
