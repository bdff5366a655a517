//! Talks to, calls and loads any server that frames its messages as one of longhaul's protocols.
//!
//! ```sh
//! cargo run --release -p longhaul-cli -- talk 127.0.0.1:7001
//! cargo run --release -p longhaul-cli -- call 127.0.0.1:7001 hello
//! cargo run --release -p longhaul-cli -- load 127.0.0.1:7001 --connections 64
//! ```
//!
//! `RUST_LOG=debug` shows what the library logs.

mod args;
mod call;
mod load;
mod talk;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand, error::ErrorKind};

/// Talks to, calls and loads servers of framed TCP messages.
#[derive(Parser)]
#[command(
    name = "longhaul",
    version,
    subcommand_value_name = "talk|call|load",
    after_help = "\
'longhaul talk --help' and so on tell what a command takes. RUST_LOG=debug shows what the library logs.

Examples:
  longhaul talk 127.0.0.1:7001
  longhaul call 127.0.0.1:7001 hello
  longhaul load 127.0.0.1:7001 --connections 1000 --duration 30"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Talk(talk::Args),
    Call(call::Args),
    Load(load::Args),
}

fn main() -> ExitCode {
    env_logger::init();
    match Cli::parse().command {
        Command::Talk(args) => talk::main(&args),
        Command::Call(args) => call::main(&args),
        Command::Load(args) => match args.check() {
            Ok(()) => load::main(&args),
            Err(why) => refuse("load", why),
        },
    }
}

/// Ends the program as for any unusable argument of a command.
fn refuse(command: &str, why: String) -> ! {
    let mut cli = Cli::command();
    cli.build();
    let command = cli.find_subcommand_mut(command).expect("a command of this program");
    command.error(ErrorKind::ValueValidation, why).exit()
}
