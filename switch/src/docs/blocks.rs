//! Blocks of code in the documents: the command line accepts each command, and each configuration is valid.

use std::path::Path;

use clap::Parser;
use crosspoint_config::Config;

use super::{documents, read};
use crate::cli::Cli;

/// A fenced block: its language, the line that it begins at, and its text.
struct Block {
    language: String,
    line: usize,
    text: String,
}

fn blocks(path: &Path) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in (1..).zip(read(path).lines()) {
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(language), None) => {
                open = Some(Block {
                    language: language.to_owned(),
                    line: number,
                    text: String::new(),
                });
            }
            (None, Some(block)) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "{}: a block has no end", path.display());
    blocks
}

/// The simple commands in a shell script, each as its words. Expansions are not expanded.
fn shell_commands(text: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let last = commands.last_mut().expect("there is one");
        match c {
            '\\' => match chars.next() {
                Some('\n') | None => {}
                Some(c) => word.get_or_insert_default().push(c),
            },
            '\'' | '"' => {
                let quoted = chars.by_ref().take_while(|&other| other != c);
                word.get_or_insert_default().extend(quoted);
            }
            '#' if word.is_none() => while chars.next_if(|&c| c != '\n').is_some() {},
            ' ' | '\t' => last.extend(word.take()),
            '\n' | '|' | ';' | '&' | '(' | ')' | '`' => {
                last.extend(word.take());
                commands.push(Vec::new());
            }
            // A redirection, its file and the descriptor before it are not words of the command.
            '<' | '>' => {
                let descriptor = |word: &String| word.bytes().all(|b| b.is_ascii_digit());
                last.extend(word.take().filter(|word| !descriptor(word)));
                while chars.next_if(|c| matches!(c, '>' | '&' | ' ')).is_some() {}
                while chars.next_if(|c| !" \n|;&()".contains(*c)).is_some() {}
            }
            c => word.get_or_insert_default().push(c),
        }
    }
    commands.last_mut().expect("there is one").extend(word);
    commands.retain(|words| !words.is_empty());
    commands
}

/// Words that may stand before a command.
const BEFORE: [&str; 7] = ["sudo", "exec", "if", "then", "while", "!", "$"];

/// The arguments of `crosspoint`, if the command runs it.
fn crosspoint_words(words: &[String]) -> Option<&[String]> {
    let assignment = |word: &String| {
        let name = word.split_once('=').map_or("", |(name, _)| name);
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
    };
    let at = words
        .iter()
        .position(|word| !assignment(word) && !BEFORE.contains(&&**word))?;
    let words = &words[at..];
    let is_ours = words[0] == "crosspoint" || words[0].ends_with("/crosspoint");
    is_ours.then_some(words)
}

#[test]
fn words_of_a_shell_are_found() {
    let text = "sudo X=1 crosspoint a 'b c' \\\n  d=\"e f\" 2>/dev/null >> g | jq '.[]'  # no\nsource <(crosspoint h)\ncrosspoint i && ls /crosspoint";
    let commands = shell_commands(text);
    let ours = commands.iter().filter_map(|words| crosspoint_words(words));
    let ours: Vec<String> = ours.map(|words| words.join("+")).collect();
    assert_eq!(
        ours,
        ["crosspoint+a+b c+d=e f", "crosspoint+h", "crosspoint+i"]
    );
}

#[test]
fn every_command_in_the_documents_is_understood() {
    let mut seen = 0;
    let mut wrong = Vec::new();
    for path in documents() {
        let blocks = blocks(&path).into_iter();
        for block in blocks.filter(|block| matches!(&*block.language, "sh" | "bash" | "console")) {
            for words in shell_commands(&block.text) {
                let Some(words) = crosspoint_words(&words) else {
                    continue;
                };
                seen += 1;
                use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
                match Cli::try_parse_from(words).map_err(|why| (why.kind(), why)) {
                    Ok(_) | Err((DisplayHelp | DisplayVersion, _)) => {}
                    Err((_, why)) => wrong.push(format!(
                        "{}, block at line {}: {}\n{why}",
                        path.display(),
                        block.line,
                        words.join(" ")
                    )),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(seen > 20, "only {seen} commands");
}

#[test]
fn every_configuration_in_the_documents_is_right() {
    let mut seen = 0;
    for path in documents() {
        let is_whole = |block: &Block| block.language == "toml" && block.text.contains("version =");
        for block in blocks(&path).into_iter().filter(is_whole) {
            seen += 1;
            let name = format!("{}:{}", path.display(), block.line);
            if let Err(error) = Config::parse(&name, &block.text) {
                panic!("{}", error.render());
            }
        }
    }
    assert!(seen > 1, "only {seen} configurations");
}
