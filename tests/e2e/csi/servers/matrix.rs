//! The model that the servers serve, and what they are to answer.

use larder_origins::Noise;
use serde_json::{Value, json};

/// A matrix of whole numbers, which have exact products, as a file in the safetensors format.
pub struct Matrix {
    pub rows: Vec<Vec<f32>>,
}

impl Matrix {
    pub fn new(seed: u64, rows: usize, columns: usize) -> Self {
        let mut noise = Noise::new(seed);
        let mut row = || (0..columns).map(|_| f32::from(noise.below(17) as u8) - 8.0).collect();
        Self { rows: (0..rows).map(|_| row()).collect() }
    }

    pub fn file(&self) -> Vec<u8> {
        let (rows, columns) = (self.rows.len(), self.rows[0].len());
        let header = json!({"w": {"dtype": "F32", "shape": [rows, columns], "data_offsets": [0, rows * columns * 4]}});
        let header = header.to_string();
        let header = format!("{header:<width$}", width = header.len().next_multiple_of(8));
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        file.extend(self.rows.iter().flatten().flat_map(|number| number.to_le_bytes()));
        file
    }

    /// What a server is to answer.
    pub fn product(&self, x: &[f32]) -> Value {
        let mut y = vec![0.0; self.rows[0].len()];
        for (row, x) in self.rows.iter().zip(x) {
            y.iter_mut().zip(row).for_each(|(y, number)| *y += x * number);
        }
        json!({"type": "none", "y": y})
    }
}
