//! The house is built as `docs/design.md` draws it: floors that import only downwards, no circle but the
//! public face, short files and short functions.
//!
//! What a file imports is read from its `use` lines and its paths, through the re-exports that these name.
//! What is only compiled for tests has no part in it.
#![allow(clippy::unwrap_used, reason = "a test says so by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// The floors, the lowest first: a file imports from its own and from those before it. Each is named by the
/// modules that belong to it, with all that is in them.
const FLOORS: [&[&str]; 9] = [
    // Values.
    &[
        "addr",
        "id",
        "moment",
        "role",
        "body",
        "stats",
        "error",
        "protocol",
        "layer",
        "config",
        "audience",
        "target",
        "close_mode",
        "drop_quietly",
    ],
    &["core"],
    &["threads"],
    &["net"],
    &["table"],
    &["api"],
    &["engine"],
    &["builder", "reactor", "worker"],
    &["client", "server", "bench"],
];

/// The one circle that is wanted: all of it lies here.
const CIRCLE: &str = "api";

const MOST_LINES: usize = 500;
const MOST_LINES_OF_TESTS: usize = 700;
const MOST_LINES_OF_A_FUNCTION: usize = 60;

#[test]
fn files_import_downwards() {
    assert_eq!(House::of_this_crate().upward_imports(), [""; 0]);
}

#[test]
fn no_circle_but_the_wanted_one() {
    assert_eq!(House::of_this_crate().circles(), [""; 0]);
}

#[test]
fn files_and_functions_are_short() {
    let house = House::of_this_crate();
    assert_eq!(house.long_files(), [""; 0]);
    assert_eq!(house.long_functions(), [""; 0]);
}

#[test]
fn circle_is_found() {
    let house = House::of(&[
        ("lib.rs", "mod core; mod table; pub use crate::table::Slot;"),
        ("core.rs", "use crate::Slot; fn f() -> crate::Slot { loop {} }"),
        ("table.rs", "use crate::core::Link; pub struct Slot;"),
    ]);
    assert_eq!(house.circles(), ["core.rs, table.rs"]);
    assert_eq!(house.upward_imports(), ["core.rs imports table.rs"]);
}

#[test]
fn circle_inside_the_face_is_wanted() {
    let house = House::of(&[
        ("lib.rs", "mod api;"),
        ("api/mod.rs", "mod conn; mod handler; pub use self::conn::Conn;"),
        ("api/conn.rs", "fn f(handler: &super::handler::Handler) {}"),
        ("api/handler.rs", "use super::Conn;"),
    ]);
    assert_eq!(house.imports["api/handler.rs"], BTreeSet::from(["api/conn.rs".to_owned()]));
    assert_eq!(house.circles(), [""; 0]);
}

#[test]
fn what_is_only_for_tests_imports_what_it_likes() {
    let house = House::of(&[
        ("lib.rs", "mod core; mod engine;"),
        ("core.rs", "#[cfg(test)] use crate::engine::A; #[cfg(test)] mod tests; // crate::engine"),
        ("core/tests.rs", "use crate::engine::A;"),
        ("engine.rs", "use crate::core; fn f() { \"crate::core\"; '{'; }"),
    ]);
    assert_eq!(house.upward_imports(), [""; 0]);
}

#[test]
fn file_that_stands_on_no_floor_is_found() {
    let house = House::of(&[("lib.rs", "mod attic;"), ("attic.rs", "")]);
    assert_eq!(house.upward_imports(), ["attic.rs stands on no floor"]);
}

#[test]
fn long_file_and_long_function_are_found() {
    let long = "\n".repeat(MOST_LINES);
    let body = "\n".repeat(MOST_LINES_OF_A_FUNCTION);
    let house = House::of(&[
        ("lib.rs", "mod core; mod table;"),
        ("core.rs", &format!("{long}struct A;\n#[cfg(test)]\nmod tests {{{long}}}\n")),
        ("table.rs", &format!("fn short() {{}}\nfn long<A, B>() -> u8 {{{body}}}\n")),
    ]);
    assert_eq!(house.long_files(), ["core.rs has 501 lines"]);
    assert_eq!(house.long_functions(), ["table.rs: long has 61 lines"]);
}

/// What the files of the crate are, by their path under `src`.
struct House {
    sources: BTreeMap<String, Source>,
    /// Which files each imports. Files that are only for tests are not among them.
    imports: BTreeMap<String, BTreeSet<String>>,
}

struct Source {
    /// The module, from the root of the crate.
    module: Vec<String>,
    /// All of it is only compiled for tests.
    is_test: bool,
    /// Lines, those of tests aside.
    lines: usize,
    /// Each function, and how many lines it has; those of tests aside.
    functions: Vec<(String, usize)>,
    /// The names that it takes from elsewhere and offers, with where they are.
    exports: BTreeMap<String, Vec<String>>,
    /// The paths that it uses, from the root of the crate.
    paths: Vec<Vec<String>>,
    /// The modules that are declared here only for tests.
    test_modules: Vec<String>,
}

impl House {
    fn of_this_crate() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut files = Vec::new();
        read_all(&root, &root, &mut files);
        let files: Vec<_> = files.iter().map(|(path, text)| (&**path, &**text)).collect();
        Self::of(&files)
    }

    fn of(files: &[(&str, &str)]) -> Self {
        let parse = |(path, text): &(&str, &str)| ((*path).to_owned(), Source::parse(path, text));
        let mut sources: BTreeMap<_, _> = files.iter().map(parse).collect();
        let tests: Vec<Vec<String>> = sources
            .values()
            .flat_map(|source| source.test_modules.iter().map(|name| child(&source.module, name)))
            .collect();
        for source in sources.values_mut() {
            source.is_test = tests.iter().any(|test| source.module.starts_with(test));
        }
        let mut house = Self { sources, imports: BTreeMap::new() };
        for (path, source) in &house.sources {
            if !source.is_test && path != "lib.rs" {
                let found = source.paths.iter().filter_map(|used| house.file_of(used));
                let found = found.filter(|file| file != path).collect();
                house.imports.insert(path.clone(), found);
            }
        }
        house
    }

    /// The file in which what a path names is, through re-exports.
    fn file_of(&self, used: &[String]) -> Option<String> {
        let is_of = |module: &[String]| self.sources.iter().find(|(_, s)| s.module == module);
        let (len, (path, source)) =
            (0..=used.len()).rev().find_map(|len| Some((len, is_of(&used[..len])?)))?;
        match used.get(len).and_then(|name| source.exports.get(name)) {
            Some(target) if target[..] != used[..] => self.file_of(target),
            // The root has nothing of its own.
            _ => Some(path.clone()).filter(|path| path != "lib.rs"),
        }
    }

    fn upward_imports(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (path, imports) in &self.imports {
            let Some(floor) = floor_of(path) else {
                found.push(format!("{path} stands on no floor"));
                continue;
            };
            let upward = imports.iter().filter(|import| floor_of(import) > Some(floor));
            found.extend(upward.map(|import| format!("{path} imports {import}")));
        }
        found
    }

    /// Files that import each other, if only by way of others.
    fn circles(&self) -> Vec<String> {
        let reached: BTreeMap<_, _> =
            self.imports.keys().map(|path| (path, self.reached_from(path))).collect();
        let circle_of = |path: &String| -> Vec<&str> {
            let others = reached[path]
                .iter()
                .filter(|other| reached.get(other).is_some_and(|reached| reached.contains(path)));
            others.map(String::as_str).collect()
        };
        let circles: BTreeSet<_> = self.imports.keys().map(circle_of).collect();
        let is_wanted =
            |circle: &&Vec<&str>| circle.iter().all(|path| self.sources[*path].module[0] == CIRCLE);
        circles.iter().filter(|circle| !is_wanted(circle)).map(|circle| circle.join(", ")).collect()
    }

    fn reached_from(&self, path: &String) -> BTreeSet<String> {
        let mut reached = BTreeSet::new();
        let mut next = vec![path];
        while let Some(path) = next.pop() {
            for import in self.imports.get(path).into_iter().flatten() {
                if reached.insert(import.clone()) {
                    next.push(import);
                }
            }
        }
        reached
    }

    fn long_files(&self) -> Vec<String> {
        let is_long = |(_, source): &(&String, &Source)| {
            source.lines > if source.is_test { MOST_LINES_OF_TESTS } else { MOST_LINES }
        };
        let long = self.sources.iter().filter(is_long);
        long.map(|(path, source)| format!("{path} has {} lines", source.lines)).collect()
    }

    fn long_functions(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (path, source) in self.sources.iter().filter(|(_, source)| !source.is_test) {
            let long = source.functions.iter().filter(|(_, len)| *len > MOST_LINES_OF_A_FUNCTION);
            found.extend(long.map(|(name, len)| format!("{path}: {name} has {len} lines")));
        }
        found
    }
}

/// The number of the floor on which a file stands.
fn floor_of(path: &str) -> Option<usize> {
    let top = path.split('/').next().unwrap().trim_end_matches(".rs");
    FLOORS.iter().position(|floor| floor.contains(&top))
}

fn read_all(root: &Path, folder: &Path, files: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(root, &path, files);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
            files.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}

fn child(module: &[String], name: &str) -> Vec<String> {
    module.iter().cloned().chain([name.to_owned()]).collect()
}

impl Source {
    fn parse(path: &str, text: &str) -> Self {
        let module = path.trim_end_matches(".rs").trim_end_matches("/mod").split('/');
        let module = module.filter(|name| *name != "lib").map(str::to_owned).collect();
        let (tokens, lines_of_tests, test_modules) = without_tests(&tokens(text));
        let mut source = Self {
            module,
            is_test: false,
            lines: text.lines().count() - lines_of_tests.len(),
            functions: functions(&tokens),
            exports: BTreeMap::new(),
            paths: Vec::new(),
            test_modules,
        };
        source.find_paths(&tokens);
        source
    }

    fn find_paths(&mut self, tokens: &[Token]) {
        let mut place = 0;
        let is_child = |pair: &&[Token]| pair[0].text == "mod";
        let children = tokens.windows(2).filter(is_child).map(|pair| pair[1].text.clone());
        let mut inner = Inner {
            module: self.module.clone(),
            children: children.collect(),
            depths: Vec::new(),
            depth: 0,
        };
        let mut words = BTreeSet::new();
        let mut offered = Vec::new();
        while let Some(Token { text, .. }) = tokens.get(place) {
            inner.pass(tokens, place);
            match &**text {
                "use" => {
                    let is_offered = is_public(&tokens[..place]);
                    let mut tree = Vec::new();
                    place = use_tree(tokens, place + 1, &mut Vec::new(), &mut tree);
                    for (used, name) in tree {
                        let Some(used) = inner.absolute(&used) else { continue };
                        if is_offered && inner.depths.is_empty() {
                            offered.push((name.clone(), used.clone()));
                            self.exports.insert(name, used);
                        } else {
                            self.paths.push(used);
                        }
                    }
                }
                word if is_word(word) && (place == 0 || tokens[place - 1].text != "::") => {
                    words.insert(word.to_owned());
                    let used = path_at(tokens, place);
                    place += 2 * used.len() - 1;
                    if used.len() > 1 {
                        self.paths.extend(inner.absolute(&used));
                    }
                }
                _ => place += 1,
            }
        }
        // What it offers and uses, too.
        let used = offered.into_iter().filter(|(name, _)| words.contains(name));
        self.paths.extend(used.map(|(_, path)| path));
    }
}

/// Whether what comes next is `pub`, or `pub(crate)` or the like.
fn is_public(before: &[Token]) -> bool {
    let last = |back: usize| before.iter().rev().nth(back).map(|token| &*token.text);
    last(0) == Some("pub") || last(0) == Some(")") && last(3) == Some("pub")
}

/// The module that a place in a file is in, as there may be modules within it.
struct Inner {
    module: Vec<String>,
    /// The modules that the file declares.
    children: BTreeSet<String>,
    /// How deep in braces each of those begins.
    depths: Vec<usize>,
    depth: usize,
}

impl Inner {
    fn pass(&mut self, tokens: &[Token], place: usize) {
        match &*tokens[place].text {
            "{" => {
                self.depth += 1;
                if place > 1 && tokens[place - 2].text == "mod" {
                    self.module.push(tokens[place - 1].text.clone());
                    self.depths.push(self.depth);
                }
            }
            "}" => {
                if self.depths.pop_if(|depth| *depth == self.depth).is_some() {
                    self.module.pop();
                }
                self.depth -= 1;
            }
            _ => {}
        }
    }

    /// A path from the root of the crate; `None` for one into another crate.
    fn absolute(&self, path: &[String]) -> Option<Vec<String>> {
        let (mut absolute, mut rest) = (self.module.clone(), path);
        match &**path.first()? {
            "crate" => absolute.clear(),
            "self" | "super" => {}
            name if self.children.contains(name) => {}
            _ => return None,
        }
        while let Some((first, behind)) = rest.split_first()
            && ["crate", "self", "super"].contains(&&**first)
        {
            if first == "super" {
                absolute.pop();
            }
            rest = behind;
        }
        absolute.extend_from_slice(rest);
        Some(absolute)
    }
}

/// Reads a tree of imports into paths and the names that they get; returns the place behind it.
fn use_tree(
    tokens: &[Token],
    mut place: usize,
    prefix: &mut Vec<String>,
    tree: &mut Vec<(Vec<String>, String)>,
) -> usize {
    let len = prefix.len();
    loop {
        match &*tokens[place].text {
            "{" => loop {
                place = use_tree(tokens, place + 1, prefix, tree);
                if tokens[place].text == "}" {
                    prefix.truncate(len);
                    place += 1;
                    return place + usize::from(tokens[place].text == ";");
                }
            },
            "}" => return place,
            "::" => {}
            "as" => {
                tree.last_mut().unwrap().1.clone_from(&tokens[place + 1].text);
                place += 1;
            }
            end @ ("," | ";") => {
                prefix.truncate(len);
                return place + usize::from(end == ";");
            }
            word => {
                if word != "self" || prefix.is_empty() {
                    prefix.push(word.to_owned());
                }
                if tokens[place + 1].text != "::" {
                    tree.push((prefix.clone(), prefix.last().unwrap().clone()));
                }
            }
        }
        place += 1;
    }
}

/// The path that begins here.
fn path_at(tokens: &[Token], mut place: usize) -> Vec<String> {
    let mut path = vec![tokens[place].text.clone()];
    while tokens.get(place + 1).is_some_and(|token| token.text == "::")
        && let Some(next) = tokens.get(place + 2).filter(|token| is_word(&token.text))
    {
        path.push(next.text.clone());
        place += 2;
    }
    path
}

/// The functions, and how many lines each has.
fn functions(tokens: &[Token]) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    for (place, pair) in tokens.windows(2).enumerate() {
        if pair[0].text == "fn" && is_word(&pair[1].text) {
            let end = end_of_item(tokens, place);
            found.push((pair[1].text.clone(), tokens[end].line - pair[0].line + 1));
        }
    }
    found
}

/// The last token of the item that begins here: its semicolon, its closing brace or, of a field, its comma.
fn end_of_item(tokens: &[Token], start: usize) -> usize {
    let (mut depth, mut angles) = (0_usize, 0_usize);
    for (place, token) in tokens.iter().enumerate().skip(start) {
        match &*token.text {
            "(" | "[" | "{" => depth += 1,
            "}" if depth <= 1 => return place,
            ")" | "]" | "}" => depth -= 1,
            "<" if depth == 0 => angles += 1,
            ">" if angles > 0 && depth == 0 && tokens[place - 1].text != "-" => angles -= 1,
            ";" | "," if depth == 0 && angles == 0 => return place,
            _ => {}
        }
    }
    tokens.len() - 1
}

/// Leaves out what is only compiled for tests: the lines of that, and the modules among it that have files
/// of their own.
fn without_tests(tokens: &[Token]) -> (Vec<Token>, BTreeSet<usize>, Vec<String>) {
    let (mut kept, mut lines, mut modules) = (Vec::new(), BTreeSet::new(), Vec::new());
    let mut place = 0;
    while place < tokens.len() {
        let attribute: String = tokens[place..].iter().take(7).map(|token| &*token.text).collect();
        let is_for_tests = ["#[cfg(test)]", "#[cfg(all(test", "#[cfg(doctest)"]
            .iter()
            .any(|start| attribute.starts_with(start));
        if !is_for_tests {
            kept.push(tokens[place].clone());
            place += 1;
            continue;
        }
        let mut item = place;
        while tokens[item].text == "#" {
            item = end_of_attribute(tokens, item) + 1;
        }
        let end = end_of_item(tokens, item);
        let words: Vec<_> = tokens[item..=end].iter().map(|token| &*token.text).collect();
        if let Some(name) = words.iter().position(|word| *word == "mod")
            && words.last() == Some(&";")
        {
            modules.push(words[name + 1].to_owned());
        }
        lines.extend(tokens[place].line..=tokens[end].line);
        place = end + 1;
    }
    (kept, lines, modules)
}

/// The closing bracket of an attribute.
fn end_of_attribute(tokens: &[Token], start: usize) -> usize {
    let mut depth = 0_usize;
    let closes = |token: &Token| {
        depth += usize::from(token.text == "[");
        depth -= usize::from(token.text == "]");
        depth == 0
    };
    start + 1 + tokens[start + 1..].iter().position(closes).unwrap()
}

#[derive(Clone, Debug)]
struct Token {
    text: String,
    line: usize,
}

fn is_word(text: &str) -> bool {
    text.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// Words, `::` and single signs; comments, strings and characters aside.
fn tokens(text: &str) -> Vec<Token> {
    let mut found = Vec::new();
    let (mut rest, mut line) = (text, 1);
    while let Some(first) = rest.chars().next() {
        let len = match first {
            _ if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '"' => string_len(rest),
            'b' if rest.starts_with("b\"") => 1 + string_len(&rest[1..]),
            'r' | 'b' if is_raw_string(rest) => raw_string_len(rest),
            '\'' => char_len(rest),
            _ if rest.starts_with("::") => 2,
            _ if is_word(rest) => {
                rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
            }
            _ => first.len_utf8(),
        };
        let (token, behind) = rest.split_at(len);
        let is_code = !first.is_whitespace()
            && !token.starts_with("//")
            && !token.contains('"')
            && !token.starts_with('\'');
        if is_code {
            found.push(Token { text: token.to_owned(), line });
        }
        line += token.matches('\n').count();
        rest = behind;
    }
    found
}

fn string_len(text: &str) -> usize {
    let mut is_escaped = true; // so that the opening quote does not count
    let end = text.find(|c| {
        let ends = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        ends
    });
    end.unwrap() + 1
}

fn is_raw_string(text: &str) -> bool {
    let text = text.trim_start_matches('b');
    text.starts_with('r') && text[1..].trim_start_matches('#').starts_with('"')
}

fn raw_string_len(text: &str) -> usize {
    let start = text.find('"').unwrap();
    let end = format!("\"{}", "#".repeat(text[..start].matches('#').count()));
    start + 1 + text[start + 1..].find(&end).unwrap() + end.len()
}

/// The length of a character, or of a lifetime's quote.
fn char_len(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), _) => {
            2 + text[2..].char_indices().skip(1).find(|(_, c)| *c == '\'').unwrap().0 + 1
        }
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 1,
    }
}
