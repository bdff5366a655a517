//! A program as its user runs it: its lines and its exit status.

use std::{
    ffi::OsStr,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::Duration,
};

use super::{PATIENCE, now, pass};

/// A program that runs; dropping it ends it.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    pub lines: Receiver<String>,
    pub errors: Receiver<String>,
}

impl Program {
    pub fn start<A: AsRef<OsStr>>(path: &Path, args: &[A]) -> Self {
        let mut child = Command::new(path)
            .args(args)
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            name: path.display().to_string(),
            input: child.stdin.take(),
            lines: read_lines(child.stdout.take().unwrap()),
            errors: read_lines(child.stderr.take().unwrap()),
            child,
        }
    }

    pub fn write(&mut self, text: &str) {
        self.input.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// The end of its input.
    pub fn end_input(&mut self) {
        self.input = None;
    }

    /// The next line of its output.
    pub fn line(&self) -> String {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => panic!("{} printed nothing in time", self.name),
            Err(RecvTimeoutError::Disconnected) => {
                panic!("{} ended and said {:?}", self.name, self.errors.iter().collect::<Vec<_>>())
            }
        }
    }

    pub fn expect(&self, line: &str) {
        assert_eq!(self.line(), line, "{}", self.name);
    }

    /// Waits for a line with this in it, and drops those before it.
    pub fn wait_for(&self, part: &str) -> String {
        loop {
            let line = self.line();
            if line.contains(part) {
                return line;
            }
        }
    }

    pub fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Waits for its end: the status, and the rest of its output and of its errors.
    pub fn end(mut self) -> (ExitStatus, Vec<String>, Vec<String>) {
        let began = now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(now() - began < PATIENCE, "{} did not end in time", self.name);
            pass(Duration::from_millis(1));
        };
        (status, self.lines.iter().collect(), self.errors.iter().collect())
    }

    pub fn expect_success(self) -> Vec<String> {
        let name = self.name.clone();
        let (status, lines, errors) = self.end();
        assert!(status.success(), "{name}: {status}, {errors:?}");
        assert!(errors.is_empty(), "{name}: {errors:?}");
        lines
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (read, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if read.send(line).is_err() {
                break;
            }
        }
    });
    lines
}
