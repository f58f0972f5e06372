//! Reading package managers: installed packages, indexes, solver output. Starts no process.
