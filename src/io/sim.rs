//! (the sim driver)
