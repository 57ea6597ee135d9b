//! How a demonstration talks: what is shown, which commands, what they said.

#![allow(clippy::print_stdout)]

/// Begins a part.
pub fn title(text: &str) {
    println!("\n━━ {text} {}", "━".repeat(96usize.saturating_sub(text.chars().count())));
}

/// A sentence.
pub fn say(text: &str) {
    println!("  {text}");
}

/// A command that somebody would type at `place`.
pub fn command(place: &str, command: &str) {
    println!("\n  {place} $ {command}");
}

/// What a command printed.
pub fn show(output: &str) {
    for line in output.lines() {
        println!("  {line}");
    }
}
