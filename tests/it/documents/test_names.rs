//! Checks that every test that the tables of a document name as evidence exists.

use std::{collections::BTreeSet, fs, path::Path};

use syn::{Item, visit::Visit};

/// The headings of table columns that name tests.
const EVIDENCE: [&str; 3] = ["shown by", "Measured by", "Tested by"];

/// The names of modules and functions in source files.
#[derive(Default)]
struct Names(BTreeSet<String>);

impl<'ast> Visit<'ast> for Names {
    fn visit_item(&mut self, item: &'ast Item) {
        match item {
            Item::Fn(function) => drop(self.0.insert(function.sig.ident.to_string())),
            Item::Mod(module) => drop(self.0.insert(module.ident.to_string())),
            _ => {}
        }
        syn::visit::visit_item(self, item);
    }
}

impl Names {
    /// Adds the names in a source file or in all source files below a directory. Adds the names of files and
    /// directories, too.
    fn add(&mut self, path: &Path) {
        self.0.insert(path.file_stem().expect("a name").to_string_lossy().into_owned());
        if path.is_dir() {
            for entry in fs::read_dir(path).expect("a directory") {
                self.add(&entry.expect("an entry").path());
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = fs::read_to_string(path).expect("a text");
            self.visit_file(&syn::parse_file(&source).expect("it is Rust"));
            // The parser does not see the tests that a macro such as `on_every_database!` lists, one per line.
            let listed = source.lines().map(str::trim).filter(|line| line.len() > 20);
            self.0.extend(listed.filter(|line| line.chars().all(is_of_name)).map(str::to_owned));
        }
    }
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'
}

/// Returns the tests that a document's tables name in an evidence column, which is always the last column.
fn named(document: &str) -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    let mut has_evidence = false;
    let mut lines = document.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((_, last)) = line.strip_suffix(" |").and_then(|row| row.rsplit_once("| ")) else { continue };
        if lines.peek().is_some_and(|next| next.starts_with("|---")) {
            has_evidence = EVIDENCE.contains(&last);
        } else if has_evidence {
            let quoted =
                last.split('`').skip(1).step_by(2).filter(|text| text.chars().all(|c| is_of_name(c) || c == ':'));
            tests.extend(quoted.map(str::to_owned));
        }
    }
    tests
}

#[test]
fn every_test_that_a_document_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = Names::default();
    for directory in ["src", "crates", "tests/it", "benches"] {
        names.add(&root.join(directory));
    }
    let mut tests = 0;
    for document in ["docs/reliability.md", "docs/security.md"] {
        for test in named(&fs::read_to_string(root.join(document)).expect("a document")) {
            tests += 1;
            let unknown = test.split("::").find(|part| !names.0.contains(*part));
            assert_eq!(unknown, None, "{test} in {document}");
        }
    }
    assert!(tests > 50, "{tests}");
}
