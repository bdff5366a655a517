//! The arguments of the examples: options with names, by the standard library alone.

#![allow(dead_code, reason = "each example uses a part")]

use std::{
    env,
    fmt::{self, Debug, Display},
    io::{self, Write},
    ops::RangeBounds,
    process,
    str::FromStr,
    time::Duration,
};

/// The options of a program, each with the place that its value goes to.
pub(crate) struct Options<'a> {
    about: &'static str,
    all: Vec<Opt<'a>>,
}

struct Opt<'a> {
    /// As the help shows it: `--name`, or `--name <VALUE>`.
    usage: &'static str,
    help: String,
    set: Box<Set<'a>>,
}

/// Puts a value, or nothing for an option that has none, where it goes.
type Set<'a> = dyn FnMut(&str) -> Result<(), String> + 'a;

impl Opt<'_> {
    fn name(&self) -> &'static str {
        self.usage.split(' ').next().unwrap_or_default()
    }

    fn has_value(&self) -> bool {
        self.usage != self.name()
    }
}

impl<'a> Options<'a> {
    /// What the program does, in one line.
    pub(crate) const fn new(about: &'static str) -> Self {
        Self { about, all: Vec::new() }
    }

    /// An option with a value. The default is what is there already.
    pub(crate) fn value<T>(self, usage: &'static str, help: &str, place: &'a mut T) -> Self
    where
        T: FromStr<Err: Display> + Display,
    {
        let help = format!("{help} [default: {place}]");
        self.with(usage, help, move |text| {
            *place = parse(text)?;
            Ok(())
        })
    }

    /// An option with a number within a range. The default is what is there already.
    pub(crate) fn number<T>(
        self,
        usage: &'static str,
        help: &str,
        range: impl RangeBounds<T> + Debug + 'a,
        place: &'a mut T,
    ) -> Self
    where
        T: FromStr<Err: Display> + Display + PartialOrd,
    {
        let help = format!("{help} [default: {place}]");
        self.with(usage, help, move |text| {
            let number = parse(text)?;
            if !range.contains(&number) {
                return Err(format!("{number} is not in {range:?}"));
            }
            *place = number;
            Ok(())
        })
    }

    /// An option with a value, of which the help tells the default.
    pub(crate) fn optional<T>(
        self,
        usage: &'static str,
        help: &str,
        place: &'a mut Option<T>,
    ) -> Self
    where
        T: FromStr<Err: Display>,
    {
        self.with(usage, help.to_owned(), move |text| {
            *place = Some(parse(text)?);
            Ok(())
        })
    }

    /// An option without a value.
    pub(crate) fn flag(self, usage: &'static str, help: &str, place: &'a mut bool) -> Self {
        self.with(usage, help.to_owned(), move |_| {
            *place = true;
            Ok(())
        })
    }

    fn with(
        mut self,
        usage: &'static str,
        help: String,
        set: impl FnMut(&str) -> Result<(), String> + 'a,
    ) -> Self {
        self.all.push(Opt { usage, help, set: Box::new(set) });
        self
    }

    /// Takes the arguments of this program. Ends it with the help if that is asked for, or with one
    /// line and status 2 if they are unusable.
    pub(crate) fn read(mut self) {
        let args = env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned());
        if let Err(why) = self.take(args) {
            eprintln!("error: {why}");
            process::exit(2);
        }
    }

    fn take(&mut self, mut args: impl Iterator<Item = String>) -> Result<(), String> {
        while let Some(arg) = args.next() {
            let (name, value) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (&*arg, None),
            };
            if matches!(name, "--help" | "-h") {
                let _ = write!(io::stdout(), "{self}");
                process::exit(0);
            }
            let Some(option) = self.all.iter_mut().find(|option| option.name() == name) else {
                let known: Vec<_> = self.all.iter().map(Opt::name).collect();
                return Err(format!("unexpected argument '{arg}': there is {}", known.join(", ")));
            };
            let value = match (value, option.has_value()) {
                (None, true) => args.next().ok_or_else(|| {
                    format!("a value is required for '{}' but none was supplied", option.usage)
                })?,
                (Some(_), false) => return Err(format!("'{name}' takes no value")),
                (value, _) => value.unwrap_or_default(),
            };
            (option.set)(&value)
                .map_err(|why| format!("invalid value '{value}' for '{}': {why}", option.usage))?;
        }
        Ok(())
    }
}

/// The help.
impl Display for Options<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n\nUsage: {} [OPTIONS]\n", self.about, env!("CARGO_BIN_NAME"))?;
        writeln!(f, "Options:")?;
        for option in &self.all {
            writeln!(f, "      {}\n          {}", option.usage, option.help)?;
        }
        writeln!(f, "  -h, --help\n          Print help")
    }
}

fn parse<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

/// A time in seconds, perhaps with a fraction.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seconds(pub(crate) Duration);

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let seconds = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
        Duration::try_from_secs_f64(seconds).map(Self).map_err(|error| error.to_string())
    }
}

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.as_secs_f64())
    }
}
