//! Writes the seeds of a target into a folder, for the coverage-guided driver: `ferro-fuzz-seeds TARGET FOLDER`. Without
//! arguments it lists the targets.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, folder] = args.as_slice() else {
        for target in ferro_fuzz::ALL {
            println!("{} {}", target.name, target.len_max);
        }
        return ExitCode::SUCCESS;
    };
    let Some(target) = ferro_fuzz::by_name(name) else {
        eprintln!("there is no target {name}; without arguments they are listed");
        return ExitCode::from(2);
    };
    for (n, seed) in (target.seeds)().iter().enumerate() {
        let path = std::path::Path::new(folder).join(format!("seed-{n:02}"));
        if let Err(error) = std::fs::write(&path, seed) {
            eprintln!("{}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
